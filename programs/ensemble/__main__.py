"""`python -m programs.ensemble`."""

from programs.ensemble.ensemble import main

if __name__ == "__main__":
    main()
