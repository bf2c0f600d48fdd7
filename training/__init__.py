"""Training tool of the demo model; the product never imports anything of it but `scenes`."""
