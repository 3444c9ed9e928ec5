"""What values cost beside a plain column. `python -m benchmarks` measures it.

`workloads` says what is done, `subjects` who does it. `worker` is the process of one subject at one
workload, `measuring` starts the workers and takes turns between them, `report` writes the page.
"""
