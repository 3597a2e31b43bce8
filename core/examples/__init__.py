"""Short programs to copy from: `python -m core.examples.own_loop`, `.lightning_fit`, `.transformer`."""
