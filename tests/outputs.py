"""What processes print."""


def said(text):
    """Lines of a process but those of Triton, which comes with some builds of torch, at its end."""
    foreign = ("nanobind: ", " - leaked ", " - ... skipped", "See https://nanobind")
    return [line for line in text.splitlines() if not line.startswith(foreign)]
