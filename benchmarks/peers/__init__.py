"""Rivals side by side: the same float file, calibration and test pictures for each; see docs/peers.md."""
