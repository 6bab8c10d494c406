// Several observers behind one: each hears everything, in the order they were added.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "train/observer.h"

namespace orchard {

class Observers : public Observer {
 public:
  void add(std::unique_ptr<Observer> observer) { observers_.push_back(std::move(observer)); }

  void on_step(const StepEvent& event) override {
    for (const auto& observer : observers_) observer->on_step(event);
  }
  void on_validation(const ValidationEvent& event) override {
    for (const auto& observer : observers_) observer->on_validation(event);
  }
  void on_message(const std::string& text) override {
    for (const auto& observer : observers_) observer->on_message(text);
  }
  void on_progress(const ProgressEvent& event) override {
    for (const auto& observer : observers_) observer->on_progress(event);
  }

 private:
  std::vector<std::unique_ptr<Observer>> observers_;
};

}  // namespace orchard
