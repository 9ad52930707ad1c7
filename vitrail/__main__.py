"""`python -m vitrail`, and with torchrun `torchrun --nproc-per-node N -m vitrail`."""

from vitrail.cli import main

main()
