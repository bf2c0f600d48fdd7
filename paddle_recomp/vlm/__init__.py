"""The runner: a picture is seen once, and every question is answered from the tokens it needs."""
