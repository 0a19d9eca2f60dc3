"""`python -m programs.report`."""

from programs.report.report import main

if __name__ == "__main__":
    main()
