"""`python -m hf_sft`, which is also what `accelerate launch -m hf_sft` runs."""

from hf_sft.cli import main

if __name__ == "__main__":
    main()
