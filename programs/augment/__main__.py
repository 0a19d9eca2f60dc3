"""`python -m programs.augment`."""

from programs.augment.augment import main

if __name__ == "__main__":
    main()
