"""
What a study costs before it is paid for. Pure arithmetic: no torch, no network, no model at hand.

architectures.py  the shape of a model, known or declared, and of the students cut from it
memory.py         bytes a job holds
jobs.py           every job of a study with its tokens, FLOPs, memory, disk and downloads
schedule.py       critical path, and the time on N devices
calibration.py    seconds on this machine, from a minute of measurement
"""
