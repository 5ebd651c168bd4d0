"""Stops, watchdog, alarms, handling of NaN and infinity, and the faults on demand that test them."""
