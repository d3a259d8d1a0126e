"""The school: teacher, light student, distillation, target fusion. Runs on torch; never on a device."""
