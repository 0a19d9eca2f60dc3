"""`python -m programs.distill`."""

from programs.distill.distill import main

if __name__ == "__main__":
    main()
