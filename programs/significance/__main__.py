"""`python -m programs.significance`."""

from programs.significance.significance import main

if __name__ == "__main__":
    main()
