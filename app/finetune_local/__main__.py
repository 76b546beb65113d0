"""`python -m finetune_local` is the command `finetune-local`."""

from finetune_local.cli.main import main

if __name__ == "__main__":
    main()
