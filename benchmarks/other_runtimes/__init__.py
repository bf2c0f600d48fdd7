"""The decoder in runtimes that no other code of this project uses, compared with its own."""
