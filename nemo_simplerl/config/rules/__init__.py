"""Rules across sections of the configuration: pure functions that return every problem they find."""
