"""The report's parts: wording, figures, page template, style and script."""
