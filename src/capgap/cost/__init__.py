"""
The cost of a study before it runs, by arithmetic: no torch, no network and no model is needed. The
measurements of `capgap plan --calibrate` are in commands/ (probe, rates).

architectures    shape of a model that need not exist yet, and of the students cut from it
teacher_configs  sizes and shapes of fetched teachers, from their config.json or GGUF header
study_sizes      sizes of the text and of the models of a study
device_memory    bytes that a job holds on its device, by kind
host_memory      main memory of a job
one_job          a job with its tokens, FLOPs, memory, disk and downloads
job_costs        every job of a study; init_costs those that make inits
makespan         critical path, and the time on N workers
device_fit       jobs that a device cannot hold, and what would make them fit
speed            seconds of a job, assumed or measured
requests         resources that a job requests from Snakemake
proposal         a study that fits into a budget of time, for `capgap init`
saved_work       finished work that a pull would bring instead
"""
