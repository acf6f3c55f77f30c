"""What presets name: functions decorated with `experiments.cells.measure`, one number of a table in each cell."""
