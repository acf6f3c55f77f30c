"""The deployed server: set-up, its processes, the gate before the SuperLink, observation and tracking."""
