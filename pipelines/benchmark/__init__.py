"""`kappaseg benchmark`: schemes × seeds trained and measured side by side, ending with one table and one page.

config.py   settings file → BenchmarkConfig              inputs.py    what the steps read, as fingerprints
expand.py   settings → steps                             plan.py      steps, and plan.json
run.py      the whole of it, and steps on this machine   schedule.py  which step runs when
steps.py    one step, in a process of its own            child.py     that process, and what its end means
ledger.py   what is done, and what of it still holds     lock.py      one process at a time
live.py     the view in the terminal                     ray_runner.py   steps as Ray tasks
measure.py  one network, measured                        timing.py    all networks, timed side by side
results.py  records → results.json, results.parquet      page.py      results → report.html
"""
