"""What an export writes in addition to weights: model card, report, dtype, and source files that don't need this
package."""
