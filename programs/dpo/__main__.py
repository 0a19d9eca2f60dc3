"""`python -m programs.dpo`."""

from programs.dpo.dpo import main

if __name__ == "__main__":
    main()
