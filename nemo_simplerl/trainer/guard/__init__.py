"""What keeps a run from going wrong unseen: stops, the watchdog, alarms, updates left out, faults to test them all."""
