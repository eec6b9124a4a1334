"""Cases in the browser: what a program shows of a case, and the HTTP routes that serve it slice by slice and as whole volumes."""
