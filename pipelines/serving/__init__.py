"""A version behind an address: engines, the door before them, and the files by which other machines start them."""
