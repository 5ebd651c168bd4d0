"""The report of a run: report.html with figures and samples, report.png, and the before-and-after table."""
