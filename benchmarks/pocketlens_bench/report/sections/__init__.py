"""The results page, kind by kind: one file for each kind of measurement, with its tables, its plot and what it lost."""
