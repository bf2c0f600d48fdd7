"""`recomp chat`: the meaning of a line, the session that obeys it, and the source of the lines."""
