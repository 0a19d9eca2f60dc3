"""`python -m course.handout`."""

from course.handout.starter import main

if __name__ == "__main__":
    main()
