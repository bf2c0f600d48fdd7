"""The runtimes of the graphs: eager Paddle for checkpoints, and those for which a bundle is
exported."""
