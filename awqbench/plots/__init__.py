"""Every figure: a tidy DataFrame in, Axes out; the title says what was found."""
