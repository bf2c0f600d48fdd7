"""`recomp chat`: what a line means, what a session does with it, and where lines come from."""
