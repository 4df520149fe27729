"""`make bench`: what HPK costs beside plain Slurm and Apptainer, measured side by side in one run. Never part of the tests."""
