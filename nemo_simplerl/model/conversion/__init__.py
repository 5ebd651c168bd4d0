"""Writers of models: conversion from one form of files to another, shards of a live model, and verification."""
