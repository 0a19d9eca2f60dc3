"""`python -m programs.grpo`."""

from programs.grpo.grpo import main

if __name__ == "__main__":
    main()
