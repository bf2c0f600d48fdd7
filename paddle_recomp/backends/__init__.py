"""What runs the graphs: eager Paddle, and whatever else a bundle is exported for."""
