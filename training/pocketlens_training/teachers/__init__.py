"""Large vision-language models that teach, each behind the one interface of teacher.py."""
