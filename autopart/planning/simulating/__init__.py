"""A step event by event, as the schedules run it."""
