"""`kappaseg plan`: settings for a data set and a machine, with estimates.

scan.py, fingerprint.py   what the masks of a data set are like
machine.py, base.py       memory that is free, speed of products, what a process holds before it trains
start.py, choose.py       the settings a plan starts from, and the rules of what is changed in them
step.py, estimate.py      a step without numbers; memory and hours of any settings
timing.py                 steps that are taken, for --measure
files.py, run.py          what is written and printed
"""
