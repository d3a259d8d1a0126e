"""Results as people read them: tables on a console (console.py), a page with plots (page.py), two results compared
(compare.py). Reads the JSON that the measuring modules write; measures nothing."""
