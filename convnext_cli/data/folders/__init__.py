"""The folders of a data set: what their names mean, masks among them, and names that leave doubts."""
