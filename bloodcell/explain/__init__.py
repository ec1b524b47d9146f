"""Why a network says what it says: maps over images, a map of its features, and checks of both."""
