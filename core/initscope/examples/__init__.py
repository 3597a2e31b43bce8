"""Short programs to copy from: `python -m initscope.examples.own_loop`, `.lightning_fit`, `.transformer`,
`.accelerate_loop`, `.torchrun_loop`.
"""
