"""Measuring finished files: several artifacts in, records out.

accuracy.py asks the files, latency.py times them; metrics.py and calibration.py make figures of what was
kept, as pure functions, so that a report is written again without asking any file.
"""
