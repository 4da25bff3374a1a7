"""Published claims: their files, a sweep that decides them, the verdicts and the page of all of them."""
