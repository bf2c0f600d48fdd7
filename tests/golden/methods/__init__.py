"""Golden cases of compression methods. Each sibling file holds a method once more as a plain loop
in NumPy, written from its description alone, and names it in EXPECTED; `record.py` keeps what the
loop gives."""
