"""
What a study costs before it is paid for. Pure arithmetic: no torch, no network, no model at hand.

architectures.py  the shape of a model, known or declared, and of the students cut from it
memory.py         bytes a job holds
sizes.py          text and models of a study
host.py           main memory a job asks for
jobs.py           every job of a study with its tokens, FLOPs, memory, disk and downloads
schedule.py       critical path, and the time on N devices
fit.py            what a device cannot hold, and what would make it fit
speed.py          seconds of a job, assumed or measured
probe.py          seconds and memory on this machine, from a minute of measurement
requests.py       what a job asks the workflow engine for
"""
