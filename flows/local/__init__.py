"""The local stack: real servers on loopback."""
