// For the program's own views. Nothing in them is live, but their numbers are written as on the page.

import { followSummary } from "./summary.js";

followSummary();
